# ADE20K segmentation as iBOT did it (paper App. C, Table 6): 160,000 iterations of 16 images, crops of 512, tested in sliding
# windows of 512 every 341 pixels. Base of the configs beside it; not for use alone.
_base_ = [
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/default_runtime.py",
]

crop_size = (512, 512)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
# --multi-scale: each ratio of (2048, 512), the short side never under 512, also mirrored.
several = [dict(type="ResizeNotUnder", scale=(2048 * r, 512 * r), least=512) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
mirrored = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="TestTimeAug", transforms=[several, mirrored, [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]]),
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="auto",  # bf16 where the GPU has it, else fp16; float32 on a CPU (transfer/config.py)
    constructor="IBOTLayerDecay",
    paramwise_cfg=dict(layer_decay=0.65),
    optimizer=dict(type="AdamW", lr=8e-5, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=16000, max_keep_ckpts=2, save_best="mIoU"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)

# COCO detection and instance segmentation as iBOT did it (paper App. C, Table 6): 1x, 12 epochs, AdamW, layer-wise decay.
# Base of the configs beside it; not for use alone. 8 GPUs; a learning rate of 1e-4 belongs to the batch named in auto_scale_lr.
_base_ = [
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/default_runtime.py",
]

# Multi-scale resizing, half of the time after a crop (DETR's augmentation). The paper's text names the resizing alone.
scales = [(1333, side) for side in range(480, 801, 32)]
resize = dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)
train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [resize],
            [
                dict(type="RandomChoiceResize", scales=[(1333, 400), (1333, 500), (1333, 600)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                resize,
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="auto",  # bf16 where the GPU has it, else fp16; float32 on a CPU (transfer/config.py)
    constructor="IBOTLayerDecay",
    paramwise_cfg=dict(layer_decay=0.8),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=True, base_batch_size=32)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP"))

# UPerNet, small, on the embedded sample: 100 labelled images of 72 pixels, ten classes and the background. Any checkpoint.
# tools/transfer_ade20k.sh --ckpt runs/sample_dense --head upernet
_base_ = "./upernet.py"

classes = (
    "background", "striped_disc", "checked_square", "dotted_triangle", "ringed_star", "zigzag_cross",
    "blotched_ring", "bricked_crescent", "spoked_flower", "latticed_ellipse", "plain_hourglass",
)  # fmt: skip
size = (72, 72)
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(type="IBOTBackbone", norm_taps=True),
    decode_head=dict(num_classes=11, channels=64),
    auxiliary_head=dict(num_classes=11, channels=32),
    test_cfg=dict(_delete_=True, mode="slide", crop_size=size, stride=(48, 48)),
)
meta = dict(classes=classes, palette=[[23 * k % 255, 97 * k % 255, 191 * k % 255] for k in range(11)])
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=size, ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size, cat_max_ratio=0.95),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
several = [dict(type="ResizeNotUnder", scale=(72 * r, 72 * r), least=72) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
mirrored = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="TestTimeAug", transforms=[several, mirrored, [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]]),
]
common = dict(type="BaseSegDataset", metainfo=meta, img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True)
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline, indices=100, **common))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **common))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, **common))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8), optimizer=dict(lr=3e-3))
auto_scale_lr = dict(enable=True, base_batch_size=8)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=400, val_begin=100000)  # the test follows
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=40, end=400),
]
default_hooks = dict(checkpoint=dict(interval=100, save_best=None, max_keep_ckpts=1), logger=dict(interval=20))

# Mask R-CNN, small, on the embedded sample: 100 labelled images of 72 pixels, ten classes. Takes any checkpoint's backbone.
# tools/transfer_coco.sh --ckpt runs/sample_dense
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/default_runtime.py",
]

classes = (
    "striped_disc", "checked_square", "dotted_triangle", "ringed_star", "zigzag_cross",
    "blotched_ring", "bricked_crescent", "spoked_flower", "latticed_ellipse", "plain_hourglass",
)  # fmt: skip
width = 64
model = dict(
    backbone=dict(_delete_=True, type="IBOTBackbone", norm_taps=True),  # trained tokens are longer than untrained ones
    neck=dict(_delete_=True, type="FPN", out_channels=width, num_outs=5),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(in_channels=width, conv_out_channels=width, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=300), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=100)),
)
size = (72, 72)
pack = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=True),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    pack,
]
meta = dict(classes=classes)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        metainfo=meta,
        indices=100,  # few labels: with many there is less for a checkpoint to bring along
        filter_cfg=dict(filter_empty_gt=True, min_size=8),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(batch_size=8, dataset=dict(metainfo=meta, pipeline=test_pipeline))
test_dataloader = dict(batch_size=8, dataset=dict(metainfo=meta, pipeline=test_pipeline))

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="auto",
    constructor="IBOTLayerDecay",
    paramwise_cfg=dict(layer_decay=0.8),
    optimizer=dict(type="AdamW", lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=8)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=16, val_begin=1000)  # the test follows
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", T_max=16, eta_min=0.0, by_epoch=True, begin=0, end=16, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=4, max_keep_ckpts=1), logger=dict(interval=20))

# UPerNet, ViT-B/16, 640 pixels: sizes of upernet_vitb16 in proportion, else its values. Nothing is published. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config upernet_vitb16_640 --gpus 8
_base_ = "./upernet_vitb16.py"

crop_size = (640, 640)
scale = (2560, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(grid=(40, 40)),
    test_cfg=dict(crop_size=crop_size, stride=(426, 426)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
# --multi-scale: each ratio of (2560, 640), the short side never under 640, also mirrored.
several = [dict(type="ResizeNotUnder", scale=(2560 * r, 640 * r), least=640) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
mirrored = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="TestTimeAug", transforms=[several, mirrored, [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

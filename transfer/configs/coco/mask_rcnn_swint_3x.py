# Mask R-CNN, Swin-T, 36 epochs. Not trained here.
# As 1x; drop path 0.2, as Swin's own detectors of 36 epochs.
_base_ = "./mask_rcnn_swint_1x.py"

model = dict(backbone=dict(drop_path=0.2))
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]

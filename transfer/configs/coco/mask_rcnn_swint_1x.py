# Mask R-CNN, Swin-T, 12 epochs. A user's run: box AP 42.8. Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config mask_rcnn_swint_1x --gpus 8
_base_ = "./mask_rcnn.py"

model = dict(
    backbone=dict(_delete_=True, type="IBOTBackbone", arch="swin_tiny", patch_size=4, window=7, drop_path=0.2, checkpointed=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))  # as published Swin detectors: no layer-wise decay

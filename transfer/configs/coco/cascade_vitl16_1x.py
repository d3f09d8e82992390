# Cascade Mask R-CNN, ViT-L/16, 12 epochs. Values by analogy with ViT-B: nothing is published. Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config cascade_vitl16_1x --gpus 8
_base_ = "./cascade_vitb16_1x.py"

model = dict(backbone=dict(arch="vit_large"), neck=dict(in_channels=[1024] * 4))

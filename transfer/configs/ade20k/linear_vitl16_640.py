# Linear head, ViT-L/16 frozen, 640 pixels. Values by analogy with ViT-B: nothing is published. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config linear_vitl16_640 --gpus 4
_base_ = "./linear_vitb16_640.py"

model = dict(backbone=dict(arch="vit_large"), decode_head=dict(in_channels=[1024] * 4, channels=4096))

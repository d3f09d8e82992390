# Linear head, ViT-S/16 frozen. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config linear_vits16 --gpus 4
_base_ = "./linear.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="vit_small", patch_size=16, grid=(32, 32), levels=False, frozen=True),
    decode_head=dict(in_channels=[384] * 4, channels=1536),
)
optim_wrapper = dict(optimizer=dict(lr=8e-4))

# Linear head, ViT-B/16 frozen. Published: mIoU 38.3 (Table 6). Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config linear_vitb16 --gpus 4
_base_ = "./linear.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="vit_base", patch_size=16, grid=(32, 32), levels=False, frozen=True),
    decode_head=dict(in_channels=[768] * 4, channels=3072),
)
optim_wrapper = dict(optimizer=dict(lr=8e-4))

# UPerNet, ViT-S/16. Published: mIoU 45.4 (Table 6). Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config upernet_vits16 --gpus 4
_base_ = "./upernet.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="vit_small", patch_size=16, grid=(32, 32), norm_taps=True, drop_path=0.1),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
# The original's config has a decay of 0.9 and its README keeps it, the paper says 0.65: the published number is the former's.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.9), optimizer=dict(lr=3e-5))

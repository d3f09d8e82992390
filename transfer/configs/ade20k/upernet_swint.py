# UPerNet, Swin-T. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config upernet_swint --gpus 4
_base_ = "./upernet.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="swin_tiny", patch_size=4, window=7, drop_path=0.1),
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=6e-5))  # as published Swin segmenters

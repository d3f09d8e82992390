# UPerNet, ViT-B/16. Published: mIoU 50.0 (Table 6). Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config upernet_vitb16 --gpus 8
_base_ = "./upernet.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="vit_base", patch_size=16, grid=(32, 32), norm_taps=True, drop_path=0.1),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=2)

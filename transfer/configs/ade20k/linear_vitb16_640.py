# Linear head, ViT-B/16 frozen, 640 pixels: as linear_vitb16 otherwise. Nothing is published. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config linear_vitb16_640 --gpus 4
_base_ = "./upernet_vitb16_640.py"

model = dict(
    backbone=dict(_delete_=True, type="IBOTBackbone", arch="vit_base", patch_size=16, grid=(40, 40), levels=False, frozen=True),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=[768] * 4,
        channels=3072,
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=8e-4))

# The frozen linear head on the embedded sample: as sample_upernet.py otherwise. Any checkpoint.
# tools/transfer_ade20k.sh --ckpt runs/sample_dense --head linear
_base_ = "./sample_upernet.py"

model = dict(
    backbone=dict(_delete_=True, type="IBOTBackbone", levels=False, frozen=True),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=3e-2))

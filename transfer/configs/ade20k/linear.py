# One linear layer on the normed patch tokens of four frozen blocks, side by side. Base of the configs beside it.
_base_ = "./recipe.py"

model = dict(
    decode_head=dict(
        type="FCNHead",
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))

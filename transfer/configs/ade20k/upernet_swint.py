# UPerNet, Swin-T. Not trained here.
# tools/transfer_ade20k.sh --ckpt F --data ADEChallengeData2016 --config upernet_swint --gpus 8
# Equal to Swin's own segmenter: drop path 0.3, 16 images a step at 6e-5, weight decay 0.01 on all but norms and tables of
# relative positions (on biases too), no layer-wise decay, whole images in the test.
_base_ = "./upernet.py"

model = dict(
    backbone=dict(type="IBOTBackbone", arch="swin_tiny", patch_size=4, window=7, drop_path=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768], channels=512),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            "absolute_pos_embed": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        },
    ),
    optimizer=dict(lr=6e-5, weight_decay=0.01),
)

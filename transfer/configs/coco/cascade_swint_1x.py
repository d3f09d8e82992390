# Cascade Mask R-CNN, Swin-T, 12 epochs. Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config cascade_swint_1x --gpus 8
# Equal to Swin's own detector of 12 epochs: drop path 0.0, 16 images a step at 1e-4, weight decay on all but norms and tables of
# relative positions (on biases too), no layer-wise decay.
_base_ = "./cascade.py"

model = dict(
    backbone=dict(_delete_=True, type="IBOTBackbone", arch="swin_tiny", patch_size=4, window=7, drop_path=0.0, checkpointed=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
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
    optimizer=dict(lr=1e-4, weight_decay=0.05),
)

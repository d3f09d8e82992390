# Cascade Mask R-CNN, ViT-B/16, 12 epochs. Published: box AP 51.2, mask AP 44.2 (Table 6). Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config cascade_vitb16_1x --gpus 8
_base_ = "./cascade.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="IBOTBackbone",
        arch="vit_base",
        patch_size=16,
        grid=(42, 68),
        drop_path=0.2,
        checkpointed=True,
    ),
    neck=dict(in_channels=[768] * 4),
)
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))

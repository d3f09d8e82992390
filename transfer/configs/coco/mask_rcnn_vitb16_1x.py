# Mask R-CNN, ViT-B/16, 12 epochs. Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config mask_rcnn_vitb16_1x --gpus 8
_base_ = "./mask_rcnn.py"

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

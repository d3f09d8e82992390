# Cascade Mask R-CNN, ViT-S/16, 12 epochs. Published: box AP 49.4, mask AP 42.6 (Table 6). Not trained here.
# tools/transfer_coco.sh --ckpt F --data COCO --config cascade_vits16_1x --gpus 8
_base_ = "./cascade.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="IBOTBackbone",
        arch="vit_small",
        patch_size=16,
        grid=(50, 63),
        drop_path=0.1,
        checkpointed=True,
    ),
    neck=dict(in_channels=[384] * 4),
)

# Mask R-CNN with its usual heads. Base of the configs beside it.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./recipe.py"]

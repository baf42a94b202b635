"""Dense models (depth, segmentation, detection): tokens merge, and what is read by place is unmerged."""

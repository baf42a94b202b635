"""Evaluation tasks, one row and one file each."""

from .registry import TASKS, build_job, register_task

__all__ = ["TASKS", "build_job", "register_task"]

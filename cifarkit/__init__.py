"""Classify, generate and explain small images in plain PyTorch."""

from cifarkit import data, models, plots, training, transforms
from cifarkit.data import ImageDataset, Loader
from cifarkit.inference import predict
from cifarkit.seeding import Draws, seed_everything
from cifarkit.training import (
    Callback,
    ClassificationTask,
    CSVLogger,
    EarlyStopping,
    ExponentialMovingAverage,
    LearningRateMonitor,
    ModelCheckpoint,
    Run,
    StochasticWeightAveraging,
    Task,
    TensorBoardLogger,
    TimeLimit,
    Trainer,
    Update,
    WandbLogger,
    freeze,
    load_checkpoint,
    load_weights,
    lr_find,
    run_folder,
    save_weights,
    schedules,
    unfreeze,
)

__version__ = "0.1.0"

__all__ = [
    "CSVLogger",
    "Callback",
    "ClassificationTask",
    "Draws",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "ImageDataset",
    "LearningRateMonitor",
    "Loader",
    "ModelCheckpoint",
    "Run",
    "StochasticWeightAveraging",
    "Task",
    "TensorBoardLogger",
    "TimeLimit",
    "Trainer",
    "Update",
    "WandbLogger",
    "data",
    "freeze",
    "load_checkpoint",
    "load_weights",
    "lr_find",
    "models",
    "plots",
    "predict",
    "run_folder",
    "save_weights",
    "schedules",
    "seed_everything",
    "training",
    "transforms",
    "unfreeze",
]

"""The configurations that train.py knows by name."""

from configs.celeba64 import celeba64
from configs.cifar10 import cifar10
from configs.digits import digits
from configs.folder import folder

CONFIGS = {"digits": digits, "cifar10": cifar10, "celeba64": celeba64, "folder": folder}

"""The configurations that train.py knows by name."""

from configs.autoencoder_kl_f8 import autoencoder_kl_f4, autoencoder_kl_f8
from configs.celeba64 import celeba64
from configs.cifar10 import cifar10
from configs.cifar10_ddpmpp import cifar10_ddpmpp, cifar10_ddpmpp_deep
from configs.cifar10_edm import cifar10_edm
from configs.cifar10_flow import cifar10_flow
from configs.cifar10_ncsnpp import cifar10_ncsnpp, cifar10_ncsnpp_deep
from configs.cifar10_vdm import cifar10_vdm
from configs.digits import digits
from configs.digits_autoencoder import digits_autoencoder
from configs.digits_classifier import digits_classifier
from configs.digits_edm import digits_edm
from configs.digits_flow import digits_flow
from configs.digits_latent import digits_latent
from configs.digits_ncsn import digits_ncsn
from configs.digits_vp import digits_vp
from configs.folder import folder
from configs.ldm import ldm4_celebahq, ldm4_imagenet, ldm8_churches, ldm8_imagenet
from configs.photos_autoencoder import photos_autoencoder
from configs.photos_latent import photos_latent
from configs.shapes_text import shapes_text

CONFIGS = {
    "digits": digits,
    "digits_classifier": digits_classifier,
    "digits_vp": digits_vp,
    "digits_ncsn": digits_ncsn,
    "digits_edm": digits_edm,
    "digits_flow": digits_flow,
    "digits_autoencoder": digits_autoencoder,
    "digits_latent": digits_latent,
    "photos_autoencoder": photos_autoencoder,
    "photos_latent": photos_latent,
    "autoencoder_kl_f8": autoencoder_kl_f8,
    "autoencoder_kl_f4": autoencoder_kl_f4,
    "ldm4_celebahq": ldm4_celebahq,
    "ldm8_churches": ldm8_churches,
    "ldm4_imagenet": ldm4_imagenet,
    "ldm8_imagenet": ldm8_imagenet,
    "cifar10": cifar10,
    "cifar10_ncsnpp": cifar10_ncsnpp,
    "cifar10_ncsnpp_deep": cifar10_ncsnpp_deep,
    "cifar10_ddpmpp": cifar10_ddpmpp,
    "cifar10_ddpmpp_deep": cifar10_ddpmpp_deep,
    "cifar10_edm": cifar10_edm,
    "cifar10_flow": cifar10_flow,
    "cifar10_vdm": cifar10_vdm,
    "celeba64": celeba64,
    "folder": folder,
    "shapes_text": shapes_text,
}

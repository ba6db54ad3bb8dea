"""Synthetic training images by diffusion inversion; the names below load their module when used"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "load_images": "dreamda.app.generation",
    "load_pipeline": "dreamda.diffusion.pipeline",
    "get_method": "dreamda.diffusion.methods",
    "expand": "dreamda.app.generation",
    "label": "dreamda.app.workflow",
    "train": "dreamda.app.workflow",
    "report": "dreamda.app.report",
    "choose": "dreamda.app.choice",
}
__all__ = [*_MODULES, "measure"]


def __getattr__(name):
    "A function of the package, loaded when it is first used (PEP 562)"
    if name == "measure":  # the package, which can be called
        return import_module("dreamda.measure")
    if name not in _MODULES:
        raise AttributeError(f"module 'dreamda' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__():
    return sorted([*globals(), *__all__])

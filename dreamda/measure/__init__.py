"""Measures of images and of results; called, the package does `dreamda.app.workflow.measure`"""

import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    "`from dreamda import measure` gives this package, whatever was imported before"

    def __call__(self, data, out, **settings):
        "What the synthetic images of a run are like, see `dreamda.app.workflow.measure`"
        from dreamda.app.workflow import measure

        return measure(data, out, **settings)


sys.modules[__name__].__class__ = _CallablePackage

"""The methods that are known, a file for each: one is added by adding its file.

Every file says how the method's config is recognised, which modules it leaves as they were (matched as its library
matches them) and which scheme (profiles/formats/schemes.py) it stores the others in.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.methods.method import Method
from profiles.formats.module import Rules
from profiles.formats.settings import REMEDY, Settings

METHODS: dict[str, Method] = {
    module.name: import_module(f"{__name__}.{module.name}").METHOD
    for module in iter_modules(__path__)
    if module.name != "method"
}


def method_of(settings: Settings) -> Method | None:
    """The method whose settings these are; None where none is known for them."""
    return next((method for method in METHODS.values() if method.recognises(settings)), None)


def rules_of(settings: Settings) -> Rules:
    """What `settings` say of every module; ProfileError where no method is known for them."""
    method = method_of(settings)
    if method is not None:
        return replace(method.rules(settings), method=method.name)
    said = settings.get("quant_method")
    problem = "missing, and nothing else names a method" if said is None else f"{short(said)} is not known here"
    raise ProfileError(f"{settings.place('quant_method')}: {problem}; {REMEDY}")

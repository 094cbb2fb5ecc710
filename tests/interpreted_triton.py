"""Lets Triton's interpreter run loops over a number known at run time: 3.6 fails there under NumPy 2.4.

It asks int() of an array of one element, which NumPy no longer answers; later versions of Triton ask for the element.
"""

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor, scope) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_with_index

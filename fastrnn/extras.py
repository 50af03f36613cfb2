"""What to install for the parts that need further packages."""

from importlib.metadata import PackageNotFoundError, requires


def install_hint(extra: str) -> str:
    """The ``pip install`` command for an extra.

    It names the packages, so that it works wherever fastrnn itself came from.
    """
    try:
        declared = [r.replace("'", '"').partition(";") for r in requires("fastrnn") or ()]
    except PackageNotFoundError:  # fastrnn is not installed
        declared = []
    wanted = [name.strip() for name, _, of in declared if of.strip() == f'extra == "{extra}"']
    named = " ".join(f'"{name}"' for name in wanted or [f"fastrnn[{extra}]"])
    return f"pip install {named} (the extra [{extra}])"

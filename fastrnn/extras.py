"""What to install for the parts that need further packages."""

from importlib.metadata import PackageNotFoundError, requires


def needs(what: str, extra: str) -> str:
    """The message "what (extra [...]): pip install ...".

    The command names the packages, so that it works wherever fastrnn itself came from.
    """
    try:
        declared = [r.replace("'", '"').partition(";") for r in requires("fastrnn") or ()]
    except PackageNotFoundError:  # fastrnn is not installed
        declared = []
    wanted = [name.strip() for name, _, of in declared if of.strip() == f'extra == "{extra}"']
    named = " ".join(f'"{name}"' for name in wanted or [f"fastrnn[{extra}]"])
    return f"{what} (extra [{extra}]): pip install {named}"

"""``warmroute``, and ``python -m router``."""

from router.cli.main import cli


def main() -> None:
    cli()


if __name__ == "__main__":
    main()

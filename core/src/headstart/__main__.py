"""``python -m headstart``, as ``torchrun -m headstart run …`` starts a rank."""

from headstart.cli import main

if __name__ == "__main__":
    main()

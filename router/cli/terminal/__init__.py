"""The admin port's figures in a terminal, for operators without a browser."""

"""Bodies that are costly to read are read in processes of their own, since the interpreter's lock would make everybody wait:
8 MiB of JSON take from 10 ms (text) to a second (a list of empty lists)."""

"""Which kernel a call reaches, and with which tile. Knows no kernel and no layer.

state          the backend in force
environment    every environment variable of the library
policy         arithmetic, GPU family, what counts as a first layer
table          rows of a table: read, written, matched
choices        which backend "auto" takes on a GPU     choices.json
tiles          which tile a Triton kernel gets         tiles.json
route          the kernel that a call reaches; loads Triton's when one is first needed
"""

"""Many files at once, or one: planned, worked on in fixed batches, resumed, and written down in a manifest.

A run is a list of items in a fixed order, cut into batches by position. A batch is computed whole or not at all, even if
some of its outputs are there already: so the result of a run that was killed and started again is, byte for byte, that
of one that was not. An output is skipped only if it is whole and says of itself that it was made from the same source
by the same recipe. An item that cannot be read is counted and never stops a run; a disk that is full does. Memory does
not grow with the number of items, but for their names.

`plan` says what is to be done, `work` does it (images in, latents out, no files), here or on a cluster as `where` says;
`local`, `packed`, `shards`, `films` and `pictures` bring the two together, `manifest` says what became of each item.
"""

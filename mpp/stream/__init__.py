"""Shards in, batches out. The files, in the order in which a batch comes to be:

order.py mixture.py state.py      which samples are read when and by whom; where a stream stands
storage.py cache.py fetching.py   bytes of shards, wherever they lie
reader.py                         samples, each checked
views.py augment.py               pixels
batches.py slots.py workers.py    one tensor for a micro-batch, made by processes ahead of time
loader.py                         the streams that training and evaluation read, and their settings
device.py                         onto the device
stall.py speed.py                 what all that costs
"""

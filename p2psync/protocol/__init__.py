"""What two nodes say to each other inside the encrypted channel: messages, frames, the session and its arbiter.

Pure: frames in, events and frames out. `limits` bounds everything a peer can make us hold, `messages` and `codec` are
the control messages, `bulk` carries content, `batcher` packs records, `session` is one connection, `arbiter` the rule
by which two nodes keep exactly one.
"""

"""kvi's flows under a virtual clock: thousands of interleavings a second, each by its seed.

The flows (`kvi.flow`, `kvi.middleware`) run unchanged, over a port of this package; whatever they
ask of the world is answered by a model::

    scenarios ── programs, and what must hold at every step
    client       a process with a handle: port, runtime, calls that can be cancelled
    network      messages lost, late, repeated; who is cut off
    store        `Primitives` and feeds over the model
    model        the store: revisions, leases, history
    world        virtual clock, one seeded scheduler, the story

Nothing here reads a real clock, starts a thread or draws a number that the seed does not decide.
So a schedule that fails is run again with its story told.
"""

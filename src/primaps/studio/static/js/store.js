// What the page knows, in one place. Views read `store.state` and are told what changed.

const listeners = new Set();

export const store = {
  state: {
    server: null, // GET state
    images: null, // GET images
    classes: null, // GET classes
    audit: null, // GET audit, once Trust was opened
    cut: null, // number of classes under the slider, before it is let go
    image: 0, // the one that is looked at
    view: "start",
    opacity: 0.55,
    outlines: true,
    sure: 0, // classes are shown where the model is at least as sure
    saving: 0, // changes that the server has not confirmed
    painted: null, // {image} whose corrections changed
    lost: "", // why there is no connection
  },

  /** Merge `patch` and tell whoever listens to one of its keys. */
  set(patch) {
    const changed = Object.keys(patch).filter((key) => patch[key] !== this.state[key]);
    if (!changed.length) return;
    Object.assign(this.state, patch);
    for (const one of [...listeners]) {
      if (listeners.has(one) && one.keys.some((key) => changed.includes(key))) one.listener(this.state, changed);
    }
  },

  /** Returns the function that ends it. */
  on(keys, listener) {
    const one = { keys: keys.split(" "), listener };
    listeners.add(one);
    return () => listeners.delete(one);
  },
};

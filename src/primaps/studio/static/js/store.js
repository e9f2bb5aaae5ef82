// The state of the page. Views read `store.state` and subscribe to changes.

const listeners = new Set();

export const store = {
  state: {
    server: null, // GET state
    images: null, // GET images
    classes: null, // GET classes
    audit: null, // GET audit, after the Audit view was opened
    cut: null, // number of classes while the slider moves; null otherwise
    image: 0, // number of the selected image
    view: "start",
    opacity: 0.55,
    outlines: true,
    minConfidence: 0, // 0..1; pixels below it are shown without a class
    saving: 0, // number of changes that the server has not confirmed
    unsaved: [], // a sentence about each of them
    painted: null, // {image}: its corrections changed
    disconnected: "", // reason for a lost connection
  },

  /** Merges `patch` into the state and calls the listeners of the changed keys. */
  set(patch) {
    const changed = Object.keys(patch).filter((key) => patch[key] !== this.state[key]);
    if (!changed.length) return;
    Object.assign(this.state, patch);
    for (const one of [...listeners]) {
      if (listeners.has(one) && one.keys.some((key) => changed.includes(key))) one.listener(this.state, changed);
    }
  },

  /** Subscribes to keys, separated by spaces; returns the function that unsubscribes. */
  on(keys, listener) {
    const one = { keys: keys.split(" "), listener };
    listeners.add(one);
    return () => listeners.delete(one);
  },
};

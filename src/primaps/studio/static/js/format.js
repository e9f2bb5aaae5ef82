// Formats numbers, durations and sentences.

export function count(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
}

export function percent(share) {
  if (share > 0 && share < 0.01) return "<1%";
  return `${Math.round(share * 100)}%`;
}

export function duration(seconds) {
  if (seconds < 10) return "a few seconds";
  if (seconds < 100) return `${Math.round(seconds / 10) * 10} seconds`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return count(minutes, "minute");
  return `${(minutes / 60).toFixed(1)} hours`;
}

/** Starts an error message of the server with a capital letter. */
export function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1);
}

/** Returns the last component of a path. */
export function fileName(path) {
  return path.slice(path.lastIndexOf("/") + 1);
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;

/** Isolates a name that is written from right to left, so that it does not reorder the sentence around it. */
export function isolated(name) {
  return RIGHT_TO_LEFT.test(name) ? `\u2068${name}\u2069` : name;
}

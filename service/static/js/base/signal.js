/**
 * A value that tells its listeners when it is set.
 *
 * @template T
 */
export class Signal {
  /** @type {Set<(value: T) => void>} */
  #listeners = new Set();
  /** @type {T} */
  #value;

  /** @param {T} value */
  constructor(value) {
    this.#value = value;
  }

  get value() {
    return this.#value;
  }

  set value(value) {
    this.#value = value;
    for (const listener of this.#listeners) listener(value);
  }

  /**
   * Call `listener` now and whenever the value is set.
   *
   * @param {(value: T) => void} listener
   */
  watch(listener) {
    this.#listeners.add(listener);
    listener(this.#value);
  }
}

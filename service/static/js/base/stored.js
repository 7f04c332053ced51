/** Texts that this tab keeps over a reload; where storage is switched off it keeps none. */

/**
 * @param {string} item
 * @returns {string | null}
 */
export function stored(item) {
  try {
    return sessionStorage.getItem(item);
  } catch {
    return null;
  }
}

/**
 * @param {string} item
 * @param {string | null} value  null to remove it
 */
export function store(item, value) {
  try {
    if (value === null) sessionStorage.removeItem(item);
    else sessionStorage.setItem(item, value);
  } catch {
    // as above
  }
}

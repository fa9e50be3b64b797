// Preact and htm under one name.
import { h, render, Component } from "./libraries/preact.js";
import { useEffect, useMemo, useRef, useState } from "./libraries/hooks.js";
import htm from "./libraries/htm.js";

export const html = htm.bind(h);
export { render, Component, useEffect, useMemo, useRef, useState };

// A number that counts up every second, so that ages on the page grow.
export function useSeconds() {
  const [count, setCount] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setCount((before) => before + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  return count;
}

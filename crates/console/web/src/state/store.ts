// Small observable values; components read them with `useStore`.
import { useEffect, useReducer } from "preact/hooks";

export class Store<T> {
  private listeners = new Set<() => void>();

  constructor(private value: T) {}

  get(): T {
    return this.value;
  }

  set(value: T): void {
    if (Object.is(value, this.value)) return;
    this.value = value;
    for (const listener of [...this.listeners]) listener();
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

/** The value of a store; renders again when it changes. */
export function useStore<T>(store: Store<T>): T {
  const [, render] = useReducer((n: number) => n + 1, 0);
  const value = store.get();
  useEffect(() => {
    // The value may have changed between the render and this subscription.
    if (!Object.is(store.get(), value)) render(undefined as never);
    return store.subscribe(() => render(undefined as never));
  }, [store]);
  return value;
}

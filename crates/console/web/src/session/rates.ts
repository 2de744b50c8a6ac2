// What the API counts in total, per second.

/** One reading of the usage of a session. */
export interface Sample {
  /** Seconds of the server's clock. */
  at: number;
  operations: number;
  rpcs: number;
  bytesIn: number;
  bytesOut: number;
}

interface Rates {
  at: number[];
  operations: number[];
  calls: number[];
  received: number[];
  sent: number[];
}

/** Differences of neighbouring samples, per second. */
export function rates(samples: Sample[]): Rates {
  const result: Rates = { at: [], operations: [], calls: [], received: [], sent: [] };
  for (let i = 1; i < samples.length; i += 1) {
    const [old, now] = [samples[i - 1] as Sample, samples[i] as Sample];
    const time = now.at - old.at;
    if (time < 0.5) continue;
    result.at.push(now.at);
    result.operations.push(now.operations);
    // Usage of a dead proxy may be missing for a while; a rate is never negative.
    result.calls.push(Math.max(0, now.rpcs - old.rpcs) / time);
    result.received.push(Math.max(0, now.bytesIn - old.bytesIn) / time);
    result.sent.push(Math.max(0, now.bytesOut - old.bytesOut) / time);
  }
  return result;
}

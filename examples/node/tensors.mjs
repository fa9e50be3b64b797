// Reads safetensors files: a uint64 length, a JSON header, the tensors' bytes.

const READERS = {
  F32: (bytes) => new Float32Array(bytes),
  I64: (bytes) => Float64Array.from(new BigInt64Array(bytes), Number),
};

/**
 * @param {Buffer} file the whole file
 * @returns {{tensors: Map<string, {shape: number[], data: Float32Array | Float64Array}>,
 *   metadata: Object<string, string>}} tensors of other types than float32 and int64 are left out
 */
export function readTensors(file) {
  const length = Number(file.readBigUInt64LE(0));
  if (length > file.length - 8) throw new Error(`the header claims ${length} bytes`);
  const { __metadata__: metadata = {}, ...header } = JSON.parse(file.toString("utf8", 8, 8 + length));
  const tensors = new Map();
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (!READERS[dtype]) continue;
    // A copy: typed arrays must begin at a multiple of their element's size.
    const bytes = Uint8Array.from(file.subarray(8 + length + from, 8 + length + to)).buffer;
    tensors.set(name, { shape, data: READERS[dtype](bytes) });
  }
  return { tensors, metadata };
}

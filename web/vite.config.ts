import { defineConfig } from 'vite'

export default defineConfig({
  esbuild: { jsx: 'automatic', jsxImportSource: 'preact' },
  build: {
    target: 'es2022',
    modulePreload: { polyfill: false },
    // The page's policy allows files of its own origin only, not data: URLs of scripts or styles.
    assetsInlineLimit: 0,
    // One script: the page is small, and all of it is needed at once.
    rollupOptions: { output: { manualChunks: undefined } },
  },
  // `npm run dev` shows the sources on the data of a running console.
  server: { proxy: { '/api': process.env.CONSOLE ?? 'http://127.0.0.1:8490' } },
})

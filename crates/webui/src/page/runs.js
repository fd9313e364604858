// Runs: the list, one of them, several beside each other.
import { ask, go, make, repeat } from './page.js';
import { colour, plot, short } from './plot.js';
import * as chat from './chat.js';
import { keep } from './recipe.js';
import { say } from './words.js';

const when = seconds => new Date(seconds * 1000).toLocaleString();
const name = path => (path ?? '').split(/[\\/]/).filter(Boolean).slice(-1)[0] ?? '';
const badge = status => make('span', { className: `status ${status.split(' ')[0]}` }, say(status));
const isAtWork = status => ['running', 'starting', 'waiting'].includes(status);

/** The list, or a run by its name. */
export function show(main, [chosen]) {
  return chosen ? one(main, chosen) : list(main);
}

function list(main) {
  const body = make('tbody'), marked = new Set();
  const compare = make('button', { disabled: true, onclick: () => go(`#compare/${[...marked].join(',')}`) }, say('Compare'));
  const none = make('p', { className: 'quiet', hidden: true }, say('No run is kept yet. Write a recipe and start one.'));
  const wrong = make('pre', { className: 'wrong', role: 'alert' });
  const heads = ['', say('status'), say('run'), say('model'), say('method'), say('steps'), say('loss'), say('eval loss'), say('began')];
  const table = make('table', {}, make('thead', {}, make('tr', {}, heads.map(head => make('th', {}, head)))), body);
  main.replaceChildren(make('section', { className: 'card' },
    make('div', { className: 'row' }, make('h2', { className: 'grow' }, say('Runs')), compare), wrong, none, make('div', { className: 'scroll' }, table)));

  function row(run) {
    const mark = make('input', { type: 'checkbox', checked: marked.has(run.name), disabled: run.number === null, 'aria-label': `${say('Compare')} ${run.name}`, onchange: () => {
      if (mark.checked) marked.add(run.name); else marked.delete(run.name);
      compare.disabled = marked.size < 2;
    } });
    const title = run.number === null ? say(`sft ${run.command}`) : `${run.number}`;
    const steps = run.total_steps ? [make('progress', { max: run.total_steps, value: run.steps ?? 0, 'aria-label': say('steps') }), ` ${run.steps ?? 0}/${run.total_steps}`, run.remaining && make('div', { className: 'small quiet' }, `${say('left')} ${run.remaining}`)] : '';
    return make('tr', {},
      make('td', {}, mark), make('td', {}, badge(run.status)),
      make('td', { className: 'name' }, make('a', { href: `#runs/${run.name}` }, title), ' ', make('span', { title: run.output_dir ?? '' }, name(run.output_dir))),
      make('td', { className: 'name' }, make('span', { title: run.model ?? '' }, name(run.model))), make('td', {}, run.method ?? ''),
      make('td', { className: 'number' }, steps), make('td', { className: 'number' }, short(run.loss)),
      make('td', { className: 'number' }, short(run.eval_loss)), make('td', { className: 'number small' }, when(run.began)));
  }

  let last = '';
  return repeat(async () => {
    const told = await ask('runs');
    // A table that is the same is left alone: something in it may have the focus.
    if (JSON.stringify(told) === last) return;
    last = JSON.stringify(told);
    wrong.textContent = told.wrong ?? '';
    none.hidden = told.runs.length > 0 || told.wrong !== null;
    table.hidden = told.runs.length === 0;
    body.replaceChildren(...told.runs.map(row));
  }, 2000);
}

/** Pictures of curves by their names, drawn as points come. */
function makePlots() {
  const root = make('div', { className: 'plots' }), pictures = new Map();
  const known = { loss: say('training loss'), learning_rate: say('learning rate'), grad_norm: say('gradient norm'), eval_loss: say('evaluation loss'), eval_accuracy: say('evaluation accuracy') };
  const order = Object.keys(known);
  const place = curve => (order.includes(curve) ? order.indexOf(curve) : order.length);
  function draw(curve, series) {
    if (!pictures.has(curve)) {
      pictures.set(curve, plot(known[curve] ?? curve.replaceAll('_', ' '), { smooth: curve === 'loss' }));
      const sorted = [...pictures].sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b));
      root.replaceChildren(...sorted.map(([, picture]) => picture.card));
    }
    pictures.get(curve).draw(series);
  }
  return { root, draw, clear: () => pictures.forEach(picture => picture.draw([])) };
}

/** What a process says, of which the page keeps the last part. */
function makeOutput() {
  const most = 400000;
  const text = make('pre', { className: 'output', tabIndex: 0, 'aria-label': say('Output') });
  const root = make('section', { className: 'card', hidden: true }, make('h3', {}, say('Output')), text);
  let length = 0;
  function add(piece) {
    root.hidden = false;
    if (!piece) return;
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    text.append(piece);
    length += piece.length;
    if (length > 2 * most) {
      const rest = text.textContent.slice(-most);
      text.textContent = `…\n${rest}`;
      length = rest.length;
    }
    if (atEnd) text.scrollTop = text.scrollHeight;
  }
  return { root, add };
}

function answersOf({ held_out: heldOut, predictions }) {
  const table = (heads, rows) => make('div', { className: 'scroll answers', tabIndex: 0 }, make('table', {}, make('thead', {}, make('tr', {}, heads.map(head => make('th', {}, head)))),
    make('tbody', {}, rows.map(cells => make('tr', {}, cells.map(cell => make('td', {}, cell ?? '')))))));
  const right = row => (row.after?.trim() === row.expected?.trim() ? '✓ ' : '✗ ');
  return [make('h3', {}, say('Answers')),
    heldOut.length ? table([say('question'), say('expected'), say('before'), say('after')], heldOut.map(row => [row.prompt, row.expected, row.before, right(row) + (row.after ?? '')])) : '',
    predictions.length ? table([say('prompt'), say('expected'), say('answer')], predictions.map(row => [row.prompt, row.label, row.predict])) : ''];
}

// What a run was made of.
function origins({ config, machine, program, files, end }) {
  const rows = [
    [say('machine'), [machine.host, machine.device, machine.system].filter(Boolean).join(' · ')],
    [say('program'), `sft ${program.version} ${program.sha256.slice(0, 16)}`],
    [say('digest of the trained weights'), end?.digest],
    ...files.map(file => [file.kind === 'data' ? say('data') : say('model'), `${file.path} · ${file.bytes} B · ${file.sha256.slice(0, 16)}`]),
    ...Object.entries(end?.results ?? {}).map(([key, value]) => [key, String(value)]),
  ];
  const table = make('table', {}, make('tbody', {}, rows.filter(([, value]) => value).map(([label, value]) => make('tr', {}, make('th', {}, label), make('td', { className: 'name' }, value)))));
  return [make('h3', {}, say('What it was made of')), make('pre', {}, config), make('details', {}, make('summary', {}, say('Machine, files, results')), make('div', { className: 'scroll' }, table))];
}

function figures(run, curves) {
  const last = curve => curves[curve]?.at(-1)[1];
  const progress = run.progress ?? {}, results = run.record?.end?.results ?? {};
  return [
    [say('step'), run.total_steps ? `${run.steps ?? 0} / ${run.total_steps}` : null], [say('epoch'), progress.epoch ?? results.epoch],
    [say('loss'), last('loss') ?? results.train_loss], [say('eval loss'), last('eval_loss')],
    [say('learning rate'), progress.lr], [say('gradient norm'), progress.grad_norm], [say('tokens/s'), progress.throughput ?? results.tokens_per_s],
    [say('elapsed'), progress.elapsed_time], [say('left'), isAtWork(run.status) ? progress.remaining_time : null],
    [say('GPU memory'), progress.vram_allocated ? `${progress.vram_allocated} GiB` : null],
    [say('peak memory'), results.peak_bytes ? `${(results.peak_bytes / 2 ** 30).toFixed(2)} GiB` : null],
  ].filter(([, value]) => value !== null && value !== undefined);
}

function one(main, chosen) {
  const at = `runs/${encodeURIComponent(chosen)}`;
  const title = make('h2', { className: 'grow' }), status = make('span', { role: 'status' }), buttons = make('div', { className: 'row' });
  const bar = make('progress', { max: 100, value: 0, 'aria-label': say('steps') }), facts = make('dl', { className: 'facts' });
  const wrong = make('pre', { className: 'wrong' }), refused = make('pre', { className: 'wrong', role: 'alert' }), where = make('p', { className: 'small quiet' });
  const plots = makePlots(), output = makeOutput();
  const answers = make('section', { className: 'card', hidden: true }), made = make('section', { className: 'card', hidden: true });
  main.replaceChildren(make('section', { className: 'card' }, make('div', { className: 'row' }, title, status), where, bar, facts, wrong, refused, buttons), plots.root, answers, output.root, made);
  let session = '', log = 0, from, was = '', stopping = false, answered = '', curves = {};

  // A button that does something, and says so if it is refused.
  function button(label, work, isMain = false) {
    const made = make('button', { className: isMain ? 'main' : '', onclick: async () => {
      made.disabled = true;
      refused.textContent = '';
      try {
        await work();
      } catch (error) {
        refused.textContent = error.message;
      }
      made.disabled = false;
    } }, label);
    return made;
  }
  const stop = now => async () => {
    await ask(`${at}/stop`, { method: 'POST', body: { now } });
    stopping = true;
    was = '';
  };
  const recipe = async command => (await ask(`${at}/recipe${command ? `?command=${command}` : ''}`)).text;
  const write = async (text, command) => {
    keep(text, command);
    go('#recipe');
  };

  function offer(run) {
    const atWork = isAtWork(run.status), trained = run.status === 'done' && run.command === 'train';
    buttons.replaceChildren(...[
      atWork && !stopping && button(run.status === 'waiting' ? say('Take back') : say('Stop'), stop(false)),
      atWork && stopping && make('span', { className: 'small quiet' }, run.command === 'train' ? say('It saves a checkpoint and ends.') : say('It ends.')),
      atWork && stopping && button(say('Stop at once'), stop(true)),
      run.can_resume && button(say('Go on'), async () => go(`#runs/${(await ask(`${at}/resume`, { method: 'POST' })).name}`), true),
      trained && button(say('Talk to it'), async () => {
        chat.keep(await recipe('chat'));
        go('#chat');
      }, true),
      trained && button(say('Let it answer'), async () => write(await recipe('predict'), 'predict')),
      trained && button(say('Merge'), async () => write(await recipe('export'), 'export')),
      button(say('Use its recipe'), async () => write(await recipe(), run.command)),
      !run.record && !atWork && button(say('Forget'), async () => {
        await ask(at, { method: 'DELETE' });
        go('#runs');
      }),
    ].filter(Boolean));
  }

  function tell(run) {
    title.textContent = run.number === null ? say(`sft ${run.command}`) : `${say('run')} ${run.number}`;
    if (run.output_dir) title.textContent += ` · ${name(run.output_dir)}`;
    if (status.textContent !== say(run.status)) status.replaceChildren(badge(run.status));
    where.textContent = [run.model, run.output_dir].filter(Boolean).join(' → ');
    const steps = run.steps ?? 0, total = run.total_steps;
    bar.hidden = !total;
    if (total) [bar.max, bar.value] = [total, steps];
    document.title = total && isAtWork(run.status) ? `${Math.floor(steps / total * 100)} % · ${title.textContent}` : title.textContent;
    facts.replaceChildren(...figures(run, curves).map(([label, value]) => make('div', {}, make('dt', {}, label), make('dd', {}, typeof value === 'number' ? short(value) : value))));
    wrong.textContent = run.record?.end?.error ?? run.progress?.warning ?? '';
    const state = `${run.status} ${run.can_resume} ${Boolean(run.record)} ${run.record?.files.length}`;
    if (state === was) return;
    was = state;
    if (!isAtWork(run.status)) stopping = false;
    offer(run);
    made.hidden = !run.record;
    if (run.record) made.replaceChildren(...origins(run.record));
  }

  function grow(run) {
    if (run.anew) {
      curves = {};
      plots.clear();
    }
    [session, log] = [run.session, run.log];
    for (const [curve, points] of Object.entries(run.curves)) {
      curves[curve] = (curves[curve] ?? []).concat(points);
      plots.draw(curve, [{ name: curve.replaceAll('_', ' '), points: curves[curve], colour: colour(0) }]);
    }
  }

  async function showAnswers(run) {
    // They are written when a run is done.
    const state = `${run.status} ${run.session} ${run.log}`;
    if (isAtWork(run.status) || run.alive || state === answered) return;
    const told = await ask(`${at}/answers`);
    answered = state;
    answers.hidden = told.held_out.length + told.predictions.length === 0;
    answers.replaceChildren(...answersOf(told));
  }

  return repeat(async hasLeft => {
    const seen = new URLSearchParams({ session, log, ...(from === undefined ? {} : { from }) });
    let run;
    try {
      run = await ask(`${at}?${seen}`);
    } catch (error) {
      if (error.status === 404) title.textContent = error.message;
      throw error;
    }
    if (hasLeft()) return;
    if (run.curves) grow(run);
    if (run.output) {
      output.add(run.output.text);
      from = run.output.next;
    }
    tell(run);
    await showAnswers(run);
    return run.output?.more === true;
  }, 1000);
}

/** Several runs: their curves in the same pictures, and what differs. */
export function compare(main, [names]) {
  const plots = makePlots(), texts = make('section', { className: 'card' });
  main.replaceChildren(make('h2', {}, say('Compare')), plots.root, texts);
  let last = '';
  return repeat(async () => {
    const told = await ask(`compare?runs=${encodeURIComponent(names ?? '')}`);
    if (JSON.stringify(told) === last) return;
    last = JSON.stringify(told);
    for (const curve of new Set(told.runs.flatMap(run => Object.keys(run.curves)))) {
      plots.draw(curve, told.runs.map((run, i) => ({ name: run.name, points: run.curves[curve] ?? [], colour: colour(i) })));
    }
    texts.replaceChildren(make('div', { className: 'scroll' }, make('pre', { className: 'wide' }, told.table), told.differ ? make('pre', { className: 'wide' }, `\n${told.differ}`) : ''));
  }, 3000);
}

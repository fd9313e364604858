// Runs: the list, one of them, several beside each other.
import { ask, go, make, repeat } from './page.js';
import { colour, plot, short } from './plot.js';
import { keep } from './train.js';
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
  const heads = ['', 'status', 'run', 'model', 'method', 'steps', 'loss', 'eval loss', 'began'];
  const table = make('table', {}, make('thead', {}, make('tr', {}, heads.map(head => make('th', {}, head && say(head))))), body);
  main.replaceChildren(make('section', { className: 'card' },
    make('div', { className: 'row' }, make('h2', { className: 'grow' }, say('Runs')), compare), none, make('div', { className: 'scroll' }, table)));

  function row(run) {
    const mark = make('input', { type: 'checkbox', checked: marked.has(run.name), disabled: run.number === null, 'aria-label': `${say('Compare')} ${run.name}`, onchange: () => {
      if (mark.checked) marked.add(run.name); else marked.delete(run.name);
      compare.disabled = marked.size < 2;
    } });
    const title = run.number === null ? `${say(`sft ${run.command}`)}` : `${run.number}`;
    const steps = run.total_steps ? [make('progress', { max: run.total_steps, value: run.steps ?? 0 }), ` ${run.steps ?? 0}/${run.total_steps}`, run.remaining && make('div', { className: 'small quiet' }, `${say('left')} ${run.remaining}`)] : '';
    return make('tr', {},
      make('td', {}, mark), make('td', {}, badge(run.status)),
      make('td', { className: 'name' }, make('a', { href: `#runs/${run.name}` }, title), ' ', make('span', { title: run.output_dir ?? '' }, name(run.output_dir))),
      make('td', { className: 'name' }, name(run.model)), make('td', {}, run.method ?? ''),
      make('td', { className: 'number' }, steps), make('td', { className: 'number' }, short(run.loss)),
      make('td', { className: 'number' }, short(run.eval_loss)), make('td', { className: 'number small' }, when(run.began)));
  }

  let last = '';
  return repeat(async () => {
    const runs = await ask('runs');
    // A table that is the same is left alone: something in it may have the focus.
    if (JSON.stringify(runs) === last) return;
    last = JSON.stringify(runs);
    none.hidden = runs.length > 0;
    table.hidden = runs.length === 0;
    body.replaceChildren(...runs.map(row));
  }, 2000);
}

const CURVES = [['loss', 'training loss'], ['learning_rate', 'learning rate'], ['grad_norm', 'gradient norm']];

function one(main, chosen) {
  const at = `runs/${encodeURIComponent(chosen)}`;
  const title = make('h2', { className: 'grow' }), status = make('span'), buttons = make('div', { className: 'row' });
  const bar = make('progress', { max: 100, value: 0 }), facts = make('dl', { className: 'facts' });
  const wrong = make('pre', { className: 'wrong' }), where = make('p', { className: 'small quiet' });
  const plots = make('div', { className: 'plots' }), drawn = new Map();
  const output = make('pre', { className: 'output', tabIndex: 0, 'aria-label': say('Output') });
  const outputCard = make('section', { className: 'card', hidden: true }, make('h3', {}, say('Output')), output);
  const answers = make('section', { className: 'card', hidden: true });
  const made = make('section', { className: 'card', hidden: true });
  main.replaceChildren(make('section', { className: 'card' }, make('div', { className: 'row' }, title, status), where, bar, facts, wrong, buttons), plots, answers, outputCard, made);
  let points, from, was = '', stopping = false, shownAnswers = '';

  const act = work => async event => {
    event.target.disabled = true;
    wrong.textContent = '';
    try {
      await work();
    } catch (error) {
      wrong.textContent = error.message;
    }
    event.target.disabled = false;
  };
  const stop = now => act(async () => {
    await ask(`${at}/stop`, { method: 'POST', body: { now } });
    stopping = true;
    was = '';
  });
  const resume = act(async () => go(`#runs/${(await ask(`${at}/resume`, { method: 'POST' })).name}`));
  const further = (command, place) => act(async () => {
    keep((await ask(`${at}/recipe${command ? `?command=${command}` : ''}`)).text, command ?? 'train');
    go(place);
  });
  const forget = act(async () => {
    await ask(at, { method: 'DELETE' });
    go('#runs');
  });

  function offer(run) {
    const atWork = isAtWork(run.status), trained = run.status === 'done' && run.command === 'train';
    const button = (label, onclick, main) => make('button', { onclick, className: main ? 'main' : '' }, say(label));
    buttons.replaceChildren(...[
      atWork && !stopping && button(run.status === 'waiting' ? 'Take back' : 'Stop', stop(false)),
      atWork && stopping && make('span', { className: 'small quiet' }, say('It saves a checkpoint and ends.')),
      atWork && stopping && button('Stop at once', stop(true)),
      run.can_resume && button('Go on', resume, true),
      trained && button('Talk to it', further('chat', '#chat'), true),
      trained && button('Let it answer', further('predict', '#recipe')),
      trained && button('Merge', further('export', '#recipe')),
      button('Use its recipe', async event => {
        const command = run.command === 'serve' ? 'train' : run.command;
        keep((await ask(`${at}/recipe`)).text, command);
        go('#recipe');
      }),
      run.number === null && !run.record && !atWork && button('Forget', forget),
    ].filter(Boolean));
  }

  function tell(run) {
    const progress = run.progress ?? {}, end = run.record?.end;
    title.textContent = run.number === null ? say(`sft ${run.command}`) : `${say('run')} ${run.number}`;
    if (run.output_dir) title.textContent += ` · ${name(run.output_dir)}`;
    status.replaceChildren(badge(run.status));
    where.textContent = [run.model, run.output_dir].filter(Boolean).join(' → ');
    const steps = run.steps ?? 0, total = run.total_steps;
    bar.hidden = !total;
    if (total) [bar.max, bar.value] = [total, steps];
    const results = end?.results ?? {};
    const figures = [
      ['step', total ? `${steps} / ${total}` : null], ['epoch', progress.epoch ?? results.epoch], ['loss', run.loss ?? results.train_loss], ['eval loss', run.eval_loss],
      ['learning rate', progress.lr], ['gradient norm', progress.grad_norm], ['tokens/s', progress.throughput ?? results.tokens_per_s],
      ['elapsed', progress.elapsed_time], ['left', isAtWork(run.status) ? progress.remaining_time : null],
      ['GPU memory', progress.vram_allocated ? `${progress.vram_allocated} GiB` : null],
      ['peak memory', results.peak_bytes ? `${(results.peak_bytes / 2 ** 30).toFixed(2)} GiB` : null],
    ];
    facts.replaceChildren(...figures.filter(([, value]) => value !== null && value !== undefined).map(([label, value]) =>
      make('div', {}, make('dt', {}, say(label)), make('dd', {}, typeof value === 'number' ? short(value) : value))));
    if (end?.error) wrong.textContent = end.error;
    if (progress.warning) wrong.textContent = progress.warning;
    const state = `${run.status} ${run.can_resume}`;
    if (state !== was) {
      was = state;
      if (!isAtWork(run.status)) stopping = false;
      offer(run);
      describe(run);
    }
  }

  function draw(curves) {
    const evaluated = Object.keys(curves).filter(curve => curve.startsWith('eval_')).sort();
    for (const [curve, label] of [...CURVES, ...evaluated.map(curve => [curve, curve.replaceAll('_', ' ')])]) {
      if (!curves[curve]) continue;
      if (!drawn.has(curve)) {
        drawn.set(curve, plot(say(label), { smooth: curve === 'loss' }));
        plots.append(drawn.get(curve).card);
      }
      drawn.get(curve).draw([{ name: curve, points: curves[curve], colour: colour(0) }]);
    }
  }

  // What it was made of, which does not change while it goes on.
  function describe(run) {
    made.hidden = !run.record;
    if (!run.record) return;
    const { config, machine, program, files, end } = run.record;
    const rows = [
      ['machine', [machine.host, machine.device, machine.system].filter(Boolean).join(' · ')],
      ['program', `sft ${program.version} ${program.sha256.slice(0, 16)}`],
      ['digest of the trained weights', end?.digest],
      ...files.map(file => [file.kind, `${file.path} · ${file.bytes} B · ${file.sha256.slice(0, 16)}`]),
      ...Object.entries(end?.results ?? {}).map(([key, value]) => [key, String(value)]),
    ];
    const table = make('table', {}, make('tbody', {}, rows.filter(([, value]) => value).map(([label, value]) => make('tr', {}, make('th', {}, say(label)), make('td', { className: 'name' }, value)))));
    made.replaceChildren(make('h3', {}, say('What it was made of')), make('pre', {}, config), make('details', {}, make('summary', {}, say('Machine, files, results')), make('div', { className: 'scroll' }, table)));
  }

  async function showAnswers(run) {
    const state = `${run.status} ${run.points}`;
    if (isAtWork(run.status) || state === shownAnswers) return;
    shownAnswers = state;
    const told = await ask(`${at}/answers`);
    const table = (heads, rows) => make('div', { className: 'scroll answers' }, make('table', {}, make('thead', {}, make('tr', {}, heads.map(head => make('th', {}, say(head))))),
      make('tbody', {}, rows.map(cells => make('tr', {}, cells.map(cell => make('td', {}, cell)))))));
    const right = row => row.after?.trim() === row.expected?.trim() ? '✓ ' : '✗ ';
    answers.replaceChildren(make('h3', {}, say('Answers')),
      told.held_out.length ? table(['question', 'expected', 'before', 'after'], told.held_out.map(row => [row.prompt, row.expected, row.before, right(row) + (row.after ?? '')])) : '',
      told.predictions.length ? table(['question', 'expected', 'answer'], told.predictions.map(row => [row.prompt, row.label, row.predict])) : '');
    answers.hidden = told.held_out.length + told.predictions.length === 0;
  }

  return repeat(async () => {
    const seen = [points !== undefined && `points=${points}`, from !== undefined && `from=${from}`].filter(Boolean).join('&');
    let run;
    try {
      run = await ask(`${at}?${seen}`);
    } catch (error) {
      if (error.status === 404) title.textContent = error.message;
      throw error;
    }
    if (run.curves) draw(run.curves);
    points = run.points;
    if (run.output !== undefined) {
      const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
      outputCard.hidden = false;
      output.append(run.output);
      if (atEnd) output.scrollTop = output.scrollHeight;
      from = run.next;
    }
    tell(run);
    await showAnswers(run);
  }, 1000);
}

/** Several runs: their curves in the same pictures, and what differs. */
export function compare(main, [names]) {
  const plots = make('div', { className: 'plots' }), texts = make('section', { className: 'card' });
  main.replaceChildren(make('h2', {}, say('Compare')), plots, texts);
  const pictures = new Map();
  let last = '';
  return repeat(async () => {
    const told = await ask(`compare?runs=${encodeURIComponent(names ?? '')}`);
    if (JSON.stringify(told) === last) return;
    last = JSON.stringify(told);
    const curves = [...new Set(told.runs.flatMap(run => Object.keys(run.curves)))].sort((a, b) => (b === 'loss') - (a === 'loss') || a.localeCompare(b));
    for (const curve of curves) {
      if (!pictures.has(curve)) {
        pictures.set(curve, plot(curve.replaceAll('_', ' '), { smooth: curve === 'loss' }));
        plots.append(pictures.get(curve).card);
      }
      pictures.get(curve).draw(told.runs.map((run, i) => ({ name: run.name, points: run.curves[curve] ?? [], colour: colour(i) })));
    }
    texts.replaceChildren(make('pre', { className: 'wide' }, told.table), told.differ ? make('pre', { className: 'wide' }, `\n${told.differ}`) : '');
  }, 3000);
}

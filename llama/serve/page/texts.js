// What the page says, in two languages.
const TEXTS = {
  skip: ["Skip to content", "跳到正文"], byHand: ["by hand", "亲手写成"], model: ["Model", "模型"],
  other: ["中文", "English"], key: ["This server wants a key:", "本服务器需要密钥："],
  broken: ["The connection was lost.", "连接中断了。"],
  chat: ["Chat", "对话"], generate: ["Generate", "续写"], tasks: ["Tasks", "任务"], tokens: ["Tokens", "词元"],
  lens: ["Inside", "内部"], trace: ["Trace", "逐行"], training: ["Training", "训练"], inspect: ["X-ray", "透视"],
  send: ["Send", "发送"], stop: ["Stop", "停止"], clear: ["New chat", "新对话"], system: ["System message", "系统消息"],
  yourMessage: ["Your message", "你的话"], user: ["You", "你"], assistant: ["Model", "模型"],
  enterSends: ["Enter sends, Shift+Enter begins a new line.", "按 Enter 发送，Shift+Enter 换行。"],
  prompt: ["Text to continue", "要续写的文本"], go: ["Write", "开始写"],
  temperature: ["Temperature", "温度"], topP: ["Top p", "Top p"], topK: ["Top k (0: off)", "Top k（0：关）"],
  minP: ["Min p", "Min p"], repetition: ["Repetition penalty", "重复惩罚"], maxTokens: ["Tokens at most", "最多词元数"],
  seed: ["Seed", "随机种子"], stopText: ["Stop at", "遇此停止"],
  written: ["{0} tokens, {1} a second, ended by {2}", "{0} 个词元，每秒 {1} 个，结束原因：{2}"],
  find: ["Look", "分析"], text: ["Text", "文本"], context: ["The text that the question is about", "问题所依据的文本"],
  question: ["Question", "问题"], task: ["Task", "任务"], labels: ["Labels, with commas", "标签，用逗号隔开"],
  tuned: ["as tuned", "按模型的任务"], confidence: ["confidence", "置信度"], nothing: ["Nothing was found.", "没有找到。"],
  tasksNote: ["A model or adapter that was tuned for a task does it; any other is asked, and needs the task and labels.",
    "为某项任务训练过的模型或适配器直接完成该任务；其他模型靠提问完成，需要选任务、写标签。"],
  tokenizer: ["Tokenizer", "分词器"], served: ["of the model", "模型自带"],
  tokensNote: ["{0} tokens, {1} characters; a vocabulary of {2}", "{0} 个词元，{1} 个字符；词表 {2}"],
  show: ["Show", "显示"], layer: ["Layer", "层"], head: ["Head", "头"], mean: ["mean of all", "全部平均"],
  attentionTitle: ["Where each token looks", "每个词元看向哪里"],
  attentionNote: ["Rows ask, columns are seen; the stronger the colour, the more weight. Rows sum to 1.",
    "行是提问者，列是被看者；颜色越浓，权重越大。每行之和为 1。"],
  lensTitle: ["What each layer would say next", "每一层接下来会说什么"],
  lensNote: ["The likeliest piece after each token, if the model ended after that layer; the last row is the model itself.",
    "假如模型到该层为止，每个词元之后最可能的片段；最后一行是模型本身。"],
  traceNote: ["Every tensor of a forward and a backward pass, in order, beside the line that makes it. It takes a while: the model is loaded once more.",
    "一次前向和一次反向传播的每个张量，按先后排列，旁边是产生它的那一行。要等一会儿：模型要再加载一次。"],
  traceLetters: ["B texts, T tokens, D hidden size, H heads, G key-value heads, K size of a head, F feed-forward size, V vocabulary",
    "B 文本数，T 词元数，D 隐藏维度，H 头数，G 键值头数，K 每头维度，F 前馈维度，V 词表"],
  reading: ["Reading along …", "正在逐行读取……"], traced: ["{0} of {1} tensors and parameters", "{1} 个张量和参数中的 {0} 个"],
  tensors: ["Tensors", "张量"], parameters: ["Parameters", "参数"], filter: ["Filter by name", "按名称筛选"],
  everyLayer: ["every layer", "所有层"], outside: ["around the layers", "各层之外"], shape: ["Shape", "形状"], sizes: ["Sizes", "大小"],
  average: ["mean", "均值"], std: ["std", "标准差"], least: ["min", "最小"], most: ["max", "最大"],
  gradient: ["|gradient|", "|梯度|"], notFinite: ["not finite", "非有限数"], place: ["Line", "行"], code: ["Code", "代码"],
  run: ["Run", "运行"], noRuns: ["No run has written metrics yet.", "还没有运行写下指标。"],
  step: ["step", "步"], loss: ["loss", "损失"], evalLoss: ["held-out loss", "留出损失"], speed: ["tokens/s", "词元/秒"],
  left: ["time left", "剩余时间"], rate: ["learning rate", "学习率"], norm: ["gradient norm", "梯度范数"],
  start: ["Start a run", "开始训练"], data: ["Data", "数据"], name: ["Name", "名称"], minutes: ["Minutes", "分钟"],
  said: ["What it prints", "输出"], watched: ["Watched texts", "观察文本"],
  writes: ["What it writes after step {0}", "第 {0} 步之后它写的"], gold: ["The data: {0}", "数据：{0}"], curve: ["Loss by step", "损失曲线"],
  trainingNote: ["LoRA on the served model, as python finetune.py --lora does it.",
    "在当前模型上做 LoRA，同 python finetune.py --lora。"],
  inspectNote: ["The first samples of a file as the model sees them; framed pieces are learned, the others only read.",
    "文件前几个样本在模型眼中的样子；带框的片段要学，其余只读。"],
  counts: ["{0} samples", "{0} 个样本"],
};

let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function t(name, ...values) {
  const text = TEXTS[name][language === "zh" ? 1 : 0];
  return text.replace(/\{(\d)\}/g, (_, i) => values[i]);
}

export function currentLanguage() {
  return language;
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
}
